"""Verified drafts: taken from text that is already there, checked by the model, so they cost no exactness.

    Drafting.begin(prompt) → Sources     once a sequence; nothing is indexed, nothing computed
    Drafting.propose(sources) → Draft    each step: the source that promises most (`sources.py`, `corpus.py`)
    LengthController.choose_width        each step: how wide a program to verify with; 1 when drafts do not pay
    Acceptance.record                    after it: what was accepted

Everything here is host side, plain Python and numpy, owned by the one thread that steps the engine. It knows no
device and no scheduler, and decides nothing about which tokens come out: that is the model's.
"""
