"""Whether the server in this container answers; exits 1 if it does not. For HEALTHCHECK in the Dockerfile."""

import sys
import urllib.request

ADDRESS = "http://127.0.0.1:8000/health"

if __name__ == "__main__":
    address = sys.argv[1] if len(sys.argv) > 1 else ADDRESS
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # a proxy would look for it elsewhere
    try:
        direct.open(address, timeout=4).close()
    except OSError as error:
        sys.exit(f"{address}: {error}")
