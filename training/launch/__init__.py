"""Launchers: one process, several under torchrun, or several on Ray; all run the same loop.

start      by the launcher of the settings
job        what every launcher runs in each of its processes
local      here
torchrun   `torchrun --nproc-per-node 2 -m training train CONFIG`, or started by ourselves
ray        Ray Train; the only module of `training` that imports Ray
"""
