"""Write serve.txt, train.txt and dev.txt: install what pyproject.toml names in a fresh environment; freeze.

python requirements/lock.py
"""
