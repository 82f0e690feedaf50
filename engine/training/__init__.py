"""The starter model's recipe: corpus, vocabulary, examples, training, export (`python -m engine.training`).

Serving never imports this package. Everything it gathers and learns on the way lies in a work folder outside the
repository; only the exported model directory comes back, as `engine/starter/`.
"""
