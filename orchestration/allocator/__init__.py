"""How many replicas run: simulator, policies, training, evaluation, controller and actuators.

Read `simulator.py` first for the model of a fleet, `baselines.py` for the rules, `evaluate.py` for how they are
compared, `controller.py` for what runs live.
"""
