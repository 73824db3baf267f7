"""The machine and its software as typed facts: what torch finds here, what is fast, which extras are missing.

Below attention, because the facts need torch alone: any layer may ask them. Nothing here changes the process.
"""
