// Kernel constants newer than Debian 12's headers (6.1), each with the kernel that brought it.
#pragma once

#include <linux/ioctl.h>
#include <linux/types.h>
#include <linux/userfaultfd.h>

#ifndef PAGEMAP_SCAN  // 6.7
#define PAGE_IS_WPALLOWED (1 << 0)
#define PAGE_IS_WRITTEN (1 << 1)
#define PAGE_IS_FILE (1 << 2)
#define PAGE_IS_PRESENT (1 << 3)
#define PAGE_IS_SWAPPED (1 << 4)
#define PAGE_IS_PFNZERO (1 << 5)
#define PAGE_IS_HUGE (1 << 6)
#define PM_SCAN_WP_MATCHING (1 << 0)
#define PM_SCAN_CHECK_WPASYNC (1 << 1)
struct page_region {
  __u64 start;
  __u64 end;
  __u64 categories;
};
struct pm_scan_arg {
  __u64 size;
  __u64 flags;
  __u64 start;
  __u64 end;
  __u64 walk_end;
  __u64 vec;
  __u64 vec_len;
  __u64 max_pages;
  __u64 category_inverted;
  __u64 category_mask;
  __u64 category_anyof_mask;
  __u64 return_mask;
};
#define PAGEMAP_SCAN _IOWR('f', 16, struct pm_scan_arg)
#endif

#ifndef PROCMAP_QUERY  // 6.11, on /proc/PID/maps
#define PROCMAP_QUERY_VMA_SHARED 0x08
struct procmap_query {
  __u64 size;
  __u64 query_flags;  // 0: the mapping that covers query_addr, else ENOENT
  __u64 query_addr;
  __u64 vma_start;
  __u64 vma_end;
  __u64 vma_flags;
  __u64 vma_page_size;
  __u64 vma_offset;
  __u64 inode;
  __u32 dev_major;
  __u32 dev_minor;
  __u32 vma_name_size;  // in: room, out: bytes with the final zero
  __u32 build_id_size;
  __u64 vma_name_addr;
  __u64 build_id_addr;
};
#define PROCMAP_QUERY _IOWR('f', 17, struct procmap_query)
#endif

#ifndef PR_GET_TID_ADDRESS
#define PR_GET_TID_ADDRESS 40
#endif

#ifndef PR_SET_MDWE  // 6.3
#define PR_SET_MDWE 65
#define PR_GET_MDWE 66
#endif

#ifndef PR_SET_MEMORY_MERGE  // 6.4
#define PR_SET_MEMORY_MERGE 67
#define PR_GET_MEMORY_MERGE 68
#endif

#ifndef PTRACE_GET_RSEQ_CONFIGURATION  // 5.13
#define PTRACE_GET_RSEQ_CONFIGURATION 0x420f
#endif

#ifndef PTRACE_GET_SYSCALL_USER_DISPATCH_CONFIG  // 6.4
#define PTRACE_GET_SYSCALL_USER_DISPATCH_CONFIG 0x4211
struct ptrace_sud_config {
  __u64 mode;  // 0: off
  __u64 selector;
  __u64 offset;
  __u64 len;
};
#endif

#ifndef PAGE_IS_GUARD  // 6.16
#define PAGE_IS_GUARD (1 << 8)
#endif

#ifndef UFFD_FEATURE_WP_UNPOPULATED  // 6.4
#define UFFD_FEATURE_WP_UNPOPULATED (1 << 13)
#endif

#ifndef UFFD_FEATURE_WP_ASYNC  // 6.7
#define UFFD_FEATURE_WP_ASYNC (1 << 15)
#endif

#ifndef UFFD_FEATURE_POISON  // 6.6
#define UFFD_FEATURE_POISON (1 << 14)
#endif

#ifndef UFFDIO_POISON  // 6.6
struct uffdio_poison {
  struct uffdio_range range;
  __u64 mode;
  __s64 updated;
};
#define UFFDIO_POISON _IOWR(UFFDIO, 0x08, struct uffdio_poison)
#endif

#ifndef MAP_DROPPABLE  // 6.11
#define MAP_DROPPABLE 0x08
#endif

#ifndef SYS_mseal  // 6.10
#define SYS_mseal 462
#endif
