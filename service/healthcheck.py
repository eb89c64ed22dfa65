"""python -m service.healthcheck: status 0 when the service of this container is ready, for HEALTHCHECK."""

import os
import urllib.request


def main() -> None:
    """Raises URLError, and so ends with status 1, when /readyz does not answer 200 within 4 seconds."""
    port = os.environ.get("BENTOML_PORT", "3000")
    urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=4).close()


if __name__ == "__main__":
    main()
