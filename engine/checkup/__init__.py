"""The doctor's examinations: each module looks at one side of the machine and answers with findings.

Invariant: an examination never raises, never reaches the network, and never imports native inference code here.
"""
