"""The second generation of the tiny family, in the making: replaces the first when it ships."""
