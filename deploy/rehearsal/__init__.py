"""The deployment, rehearsed on one machine: `python -m deploy.rehearsal`."""
