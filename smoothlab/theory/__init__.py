"""The paper's constants and theorems, as printed and corrected."""
