#include "core/inject/death_notice.h"

#include <sys/syscall.h>
#include <unistd.h>

#include "core/base/error.h"

namespace migrate {

DeathNotice::DeathNotice(uint32_t* word) {
  // The kernel looks at words that hold the dying thread's id, and wakes where FUTEX_WAITERS is set.
  value_ = (static_cast<uint32_t>(::gettid()) & FUTEX_TID_MASK) | FUTEX_WAITERS;
  __atomic_store_n(word, value_, __ATOMIC_SEQ_CST);
  check(::syscall(SYS_get_robust_list, 0, &previous_, &previous_bytes_), "get_robust_list");
  node_.next = &head_.list;
  head_.list.next = &node_;
  head_.futex_offset = static_cast<long>(reinterpret_cast<intptr_t>(word) - reinterpret_cast<intptr_t>(&node_));
  check(::syscall(SYS_set_robust_list, &head_, sizeof head_), "set_robust_list");
}

DeathNotice::~DeathNotice() { ::syscall(SYS_set_robust_list, previous_, sizeof head_); }

}  // namespace migrate
