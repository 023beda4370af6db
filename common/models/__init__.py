"""The networks: U-Nets (teacher T1, students S1 and S2) and TransUNet (teacher T2)."""
