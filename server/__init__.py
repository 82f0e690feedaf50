"""The server: completions over gRPC.

Knows requests, windows of text, limits and streams. Does not know models or devices (`engine`) nor the command line
(`cloudcomplete`). Read `app.py` first: it builds everything in one function.
"""
