// A futex word in shared memory that the kernel changes and wakes when the calling thread dies.
#pragma once

#include <linux/futex.h>

#include <cstddef>
#include <cstdint>

namespace migrate {

/// Uses the kernel's robust futex list, with a list of our own for as long as this lives: the library's list nodes lie
/// next to the futex word, in memory that a hostile task could write. The calling thread must hold no robust mutex and
/// must destroy this itself. On its death the word gets FUTEX_OWNER_DIED and one waiter is woken.
class DeathNotice {
 public:
  /// `word` is ours to set; it must stay mapped while this lives.
  explicit DeathNotice(uint32_t* word);
  DeathNotice(const DeathNotice&) = delete;
  DeathNotice& operator=(const DeathNotice&) = delete;
  ~DeathNotice();

  /// The word's value while we live.
  uint32_t value() const { return value_; }

 private:
  uint32_t value_ = 0;
  robust_list node_{};
  robust_list_head head_{};
  robust_list_head* previous_ = nullptr;
  size_t previous_bytes_ = 0;
};

}  // namespace migrate
