"""The heart: functions of tensors. Read `operator.py` first."""
