"""The model: facts (`config.py`, `families/`), computation (`transformer.py`), attention (`attention.py`)."""
