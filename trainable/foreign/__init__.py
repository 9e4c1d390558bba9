"""Checkpoints of the public implementations, and one way to load any checkpoint for evaluation.

Official TRM and ETRM reference: a file ``step_<n>`` without extension, a plain mapping name →
tensor, with ``all_config.yaml`` beside it. With EMA on it holds averaged parameters and raw buffers
(puzzle table, initial states).
"""
