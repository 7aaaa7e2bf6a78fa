"""Nodes of s3dnerf for ComfyUI. Link or copy this folder into ``ComfyUI/custom_nodes`` as ``s3dnerf``."""

from .nodes import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS

__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS"]
