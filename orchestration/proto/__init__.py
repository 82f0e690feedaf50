"""KEDA's external-scaler contract, and the code generated from it."""
