"""The store in MongoDB: for many machines. Import ``store`` only when it is used: the driver is
large.
"""
