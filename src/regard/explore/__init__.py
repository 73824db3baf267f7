"""Looking: alignment, trace, figures, and the terminal's grid."""
