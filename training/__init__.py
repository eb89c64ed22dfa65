"""Training: stage 1 (motion from a few clips), stage 2 (preferences), and the built-in tiny family."""

import huvidpo  # noqa: F401  # first: it quiets libraries before they are loaded
