"""Self-reenactment of real clips: scores, tables, contact sheets."""

from .evaluate import ROWS, EvaluationReport, Reenactor, evaluate_clips

__all__ = ["ROWS", "EvaluationReport", "Reenactor", "evaluate_clips"]
