"""Learns and samples."""
