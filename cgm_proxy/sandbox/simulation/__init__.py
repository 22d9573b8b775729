"""Simulated patients, orders and submissions."""
