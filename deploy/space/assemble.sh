#!/usr/bin/env bash
# Put together a Space's repository: these files, the library, and a bundle that `lookalike bundle` wrote.
#
#   deploy/space/assemble.sh served ../my-space
set -euo pipefail
[ $# -eq 2 ] || { echo "usage: deploy/space/assemble.sh BUNDLE FOLDER" >&2; exit 2; }
here=$(cd "$(dirname "$0")" && pwd)
root=$here/../..
[ -f "$1/bundle.json" ] || { echo "$1 is no bundle; make one: lookalike bundle $1" >&2; exit 1; }
mkdir -p "$2"
rm -rf "$2/lookalike" "$2/bundle" # what an update removed must not stay
cp -R "$root/lookalike" "$2/lookalike"
find "$2/lookalike" -name __pycache__ -prune -exec rm -r {} +
cp -R "$1" "$2/bundle"
rm -rf "$2/bundle/changes" # kept beside an index that was asked where it lay
cp "$here/README.md" "$here/Dockerfile" "$here/app.py" "$here/.gitattributes" "$root/LICENSE" "$2/"
cp "$root/requirements/space.txt" "$2/requirements.txt"
du -sh "$2"
