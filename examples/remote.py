"""The quickstart on a server: start one with `stemma serve`, then run this.

    stemma serve &
    python examples/remote.py                       # or: python examples/remote.py http://host:30000

Nothing of the programs changes: only the endpoint they run on.
"""

from __future__ import annotations

import sys
from pathlib import Path

import stemma

sys.path.insert(0, str(Path(__file__).parent))
import quickstart


def main() -> int:
    url = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:30000"
    try:
        endpoint = stemma.RuntimeEndpoint(url)
        print(f"{url} serves {endpoint.info()['model_path']}\n")
    except stemma.EndpointError as error:
        print(f"{error}\nStart a server first: stemma serve", file=sys.stderr)
        return 1
    stemma.set_default_backend(endpoint)
    quickstart.main()
    return 0


if __name__ == "__main__":
    sys.exit(main())
