"""The load test: drives a running service over HTTP, on labelled images, and tells accuracy and latency together.

It talks HTTP only and imports no other room. Every time in a result is counted from the moment a request was due.
"""
