from search.study.study import Study

__all__ = ["Study"]
