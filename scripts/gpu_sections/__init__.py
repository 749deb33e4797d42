"""The sections of check_gpu.py: functions of a Scope that yield rows of numbers."""
