"""What the server answers, as documents.

python -m lookalike.api docs > docs/api.md
python -m lookalike.api openapi > openapi.json
"""

import json
import sys

from lookalike.api.app import create
from lookalike.api.docs import page
from lookalike.api.service import Service
from lookalike.api.settings import Settings

if __name__ == "__main__":
    app, _ = create(Service(Settings(), print))
    if sys.argv[1:] == ["docs"]:
        sys.stdout.write(page(app.openapi()))
    elif sys.argv[1:] == ["openapi"]:
        json.dump(app.openapi(), sys.stdout, indent=2)
    else:
        sys.exit("python -m lookalike.api docs, or openapi")
