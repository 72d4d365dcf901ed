"""Evaluations: functions of a frozen encoder, used inside the training loop and by the commands alike."""
