"""Write serve.txt, train.txt, dev.txt: install what pyproject.toml names in a fresh environment and freeze it.

python requirements/lock.py
"""
