"""Backbones that can be cut after any block, and the attention gates that defenses put into them."""

from .backbone import BACKBONES, Backbone, build_backbone, build_branch

__all__ = ["BACKBONES", "Backbone", "build_backbone", "build_branch"]
