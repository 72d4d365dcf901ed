"""Parity with the original, with PyTorch and with torchvision.

| kind | files |
|---|---|
| tests, without torch | test_step, test_probe, test_against_golden, test_network, test_augmentation, test_schedules |
| tests that need torch | test_torch_reference, and in the others those of stored values against live ones |
| commands | against_golden (ours on a folder of the original's results), against_facebook (makes such a folder) |
| an independent PyTorch step | torch_reference, which imports torch alone |
| makers of stored values, with torch | make_step, make_probe, make_network, make_augmentation |
| settings and inputs, numpy alone | step_cases, probe_cases, network_cases; fb_golden/inputs, whose generator all use |
| stored values | golden/ (ours), fb_golden/ (the original's, with its README), data/ (classifiers; a published curve) |
| shared by the tests | ours (the shipped step on given inputs), differences, torchvision_cpu |
"""
