"""TODOC metricsx"""
