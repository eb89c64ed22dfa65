"""Who is better: candidates to rate, ratings, the judge, the paper's table and the gate of what ships."""

import huvidpo  # noqa: F401  # first: it quiets libraries before they are loaded
