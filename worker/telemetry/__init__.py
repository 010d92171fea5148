"""Listeners to events that decide nothing: metrics, logs, traces, health."""
