"""The HTTP server: rendering jobs, live sessions over WebSocket and WebRTC, and the page of ``s3dnerf demo``.

Its modules import FastAPI, uvicorn and aiortc, which the extra ``serve`` installs. Nothing else in the package imports
them.
"""
