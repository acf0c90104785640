"""The parts of bench/run.py, one subject a module."""
import os
import sys

TESTS = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "tests")
sys.path[:0] = [TESTS, os.path.join(TESTS, "migration")]
