// A thread that is there before it is needed.
#pragma once

#include <functional>
#include <future>

namespace migrate {

/// To start a thread takes some 100 microseconds, for which a stopped task would wait. Without work it ends with this.
class Standby {
 public:
  using Work = std::function<void()>;

  Standby() : end_(std::async(std::launch::async, [work = work_.get_future()]() mutable { perform(work.get()); })) {}
  Standby(const Standby&) = delete;
  Standby& operator=(const Standby&) = delete;
  ~Standby() {
    if (end_.valid()) work_.set_value({});
  }

  /// Once. Whoever has the future waits for the end of the work when it goes; its get() throws what the work threw.
  std::future<void> begin(Work work) {
    work_.set_value(std::move(work));
    return std::move(end_);
  }

 private:
  static void perform(const Work& work) {
    if (work) work();
  }

  std::promise<Work> work_;
  std::future<void> end_;
};

}  // namespace migrate
