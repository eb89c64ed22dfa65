"""The HTTP service. `app.py` names the BentoML services, `generation.py` is what they do."""
