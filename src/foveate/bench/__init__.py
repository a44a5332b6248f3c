"""Measuring: accuracy with intervals (runner), time as ratios within one run (timing, speed), tables and pages.

A number leaves this package only with what it needs to be read: how many samples, which interval, which machine.
"""
