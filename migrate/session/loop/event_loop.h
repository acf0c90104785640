// The event loop of an agent, over libuv: descriptors, timers. Signals come as signalfd(2)s and children as pidfds, so
// that a forked child shares no handler with us. libuv stays inside event_loop.cpp.
#pragma once

#include <chrono>
#include <functional>
#include <memory>

namespace migrate {

/// One thread. A handler may destroy any watch, its own too, and may throw: run() then ends with that exception.
class EventLoop {
  struct Handle;

 public:
  using Handler = std::function<void()>;

  /// What is waited for, for as long as this lives. Must not outlive the loop. Empty when default-constructed.
  class Watch {
   public:
    Watch() = default;
    Watch(Watch&& other) noexcept;
    Watch& operator=(Watch&& other) noexcept;
    ~Watch();
    explicit operator bool() const { return handle_ != nullptr; }

   private:
    friend class EventLoop;
    explicit Watch(Handle* handle) : handle_(handle) {}
    Handle* handle_ = nullptr;
  };

  EventLoop();
  ~EventLoop();
  EventLoop(const EventLoop&) = delete;
  EventLoop& operator=(const EventLoop&) = delete;

  /// `handler` is called as long as `fd` is readable (errors and hang-ups count). One watch a descriptor; it becomes
  /// non-blocking (libuv's rule). The watch must go before the descriptor is closed. Throws Error.
  [[nodiscard]] Watch when_readable(int fd, Handler handler);
  [[nodiscard]] Watch when_writable(int fd, Handler handler);
  /// Once, after `time`.
  [[nodiscard]] Watch after(std::chrono::milliseconds time, Handler handler);

  /// Until stop(). Throws what a handler threw.
  void run();
  /// Waits until a handler was called, and calls all that are due.
  void run_once();
  void stop();

 private:
  [[nodiscard]] Watch poll(int fd, int events, Handler handler);
  void rethrow();
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace migrate
