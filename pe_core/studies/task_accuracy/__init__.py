"""Trained on short questions with exact answers, who answers long ones?"""
