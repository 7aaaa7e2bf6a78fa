"""Evaluation by self-reenactment of real clips: scores, tables and contact sheets."""

from .evaluate import evaluate_clips
from .report import EvaluationReport
from .rows import ROWS, Reenactor

__all__ = ["ROWS", "EvaluationReport", "Reenactor", "evaluate_clips"]
