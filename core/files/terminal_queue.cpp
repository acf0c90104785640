#include "core/files/terminal_queue.h"

#include <asm/termbits.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <memory>
#include <optional>

#include "core/base/error.h"

namespace migrate {
namespace {

constexpr size_t kMostInput = 4096;       // N_TTY_BUF_SIZE
constexpr size_t kMostOutput = 64 << 10;  // more than a port (8 KiB, pty_common_install) and the line discipline have
constexpr int kPatience = 2000;           // ms, for a kernel thread that moves bytes

/// All that is needed is there before it begins: the process that carries it out shares our memory and takes none.
struct Transfer {
  int master = -1, slave = -1;
  struct termios2 modes {};
  bool packets = false;
  std::array<char, kMostInput> input{};
  size_t input_bytes = 0;
  std::array<uint16_t, kMostInput> lines{};  ///< their lengths; what is behind the last is the rest
  size_t line_count = 0;
  std::array<char, kMostOutput> output{};
  size_t output_bytes = 0;
  std::array<char, 3 * kMostInput + 8> typed{};  ///< all quoted, and as many ends of files
  size_t typed_bytes = 0;
  const char* failed = nullptr;
  int error = 0;

  bool by_lines() const { return (modes.c_lflag & ICANON) != 0; }
  bool fail(const char* step, int why) {
    if (failed == nullptr) {
      failed = step;
      error = why;
    }
    return false;
  }
};

int waiting(int fd) {
  int bytes = 0;
  return ::ioctl(fd, FIONREAD, &bytes) == 0 ? bytes : 0;
}

/// poll(2) also brings in what a kernel thread has not moved yet (n_tty_poll), where nothing is there to be read.
short poll_for(int fd, short events, int timeout) {
  pollfd p{fd, events, 0};
  return ::poll(&p, 1, timeout) > 0 ? p.revents : short{0};
}

bool set(Transfer& t, const struct termios2& modes) {
  return ::ioctl(t.slave, TCSETS2, &modes) == 0 || t.fail("set the modes of", errno);
}

/// The master has no line editing: what is there can be read without waiting.
bool take_output(Transfer& t) {
  while ((poll_for(t.master, POLLIN, 0) & POLLIN) != 0) {
    if (t.output_bytes == t.output.size()) return t.fail("read all output of", E2BIG);
    const ssize_t n = ::read(t.master, t.output.data() + t.output_bytes, t.output.size() - t.output_bytes);
    if (n <= 0) return n == 0 || errno == EIO || errno == EAGAIN || t.fail("read the output of", errno);
    t.output_bytes += static_cast<size_t>(n);
  }
  return true;
}

/// What is left behind all whole lines, or without line editing.
bool take_rest(Transfer& t) {
  while (poll_for(t.slave, POLLIN, 0), waiting(t.slave) > 0 && t.input_bytes < t.input.size()) {
    const ssize_t n = ::read(t.slave, t.input.data() + t.input_bytes, t.input.size() - t.input_bytes);
    if (n <= 0) return t.fail("read the input of", n < 0 ? errno : EIO);
    t.input_bytes += static_cast<size_t>(n);
  }
  return true;
}

/// A read ends behind a line; one of no bytes is an end of file that was typed.
bool take_input(Transfer& t) {
  if (!t.by_lines()) return take_rest(t);
  while (t.line_count < t.lines.size() && (poll_for(t.slave, POLLIN, 0) & POLLIN) != 0) {
    const ssize_t n = ::read(t.slave, t.input.data() + t.input_bytes, t.input.size() - t.input_bytes);
    if (n < 0) return errno == EAGAIN || t.fail("read the input of", errno);
    t.lines[t.line_count++] = static_cast<uint16_t>(n);
    t.input_bytes += static_cast<size_t>(n);
  }
  // Of a line that is not whole the kernel tells nothing until line editing is turned off.
  struct termios2 plain = t.modes;
  plain.c_lflag &= ~static_cast<tcflag_t>(ICANON);
  if (!set(t, plain)) return false;
  const bool taken = take_rest(t);
  return set(t, t.modes) && taken;
}

class Typist {
 public:
  /// The input may have every value: what means something else is quoted.
  explicit Typist(Transfer& t) : t_(t) {
    cc_t next = 1;
    for (cc_t* const wanted : {&end_of_file_, &quote_, &erase_}) {
      while (next == '\n' || next == eol() || next == eol2()) ++next;
      *wanted = next++;
    }
  }

  /// Types all of it at the master with echo, and reads the echo: then the kernel has taken it.
  bool type() {
    if (t_.input_bytes == 0 && t_.line_count == 0) return true;
    size_t at = 0;
    for (size_t i = 0; i < t_.line_count; at += t_.lines[i++]) put_line(t_.input.data() + at, t_.lines[i]);
    for (; at < t_.input_bytes; ++at) put(t_.input[at]);
    size_t echo = t_.input_bytes;
    if (t_.by_lines()) {  // an end of file has no echo; a character and its erasure have
      put('x');
      add(static_cast<char>(erase_));
      echo += 2;
    }
    return set(t_, modes()) && write_all() && read_echo(echo) && set(t_, t_.modes);
  }

 private:
  cc_t eol() const { return t_.modes.c_cc[VEOL]; }
  cc_t eol2() const { return t_.modes.c_cc[VEOL2]; }
  bool ends_line(char c) const {
    const auto u = static_cast<cc_t>(c);
    return c == '\n' || (u != 0 && (u == eol() || u == eol2()));
  }
  void add(char c) { t_.typed[t_.typed_bytes++] = c; }
  bool needs_quote(char c) const {
    const auto u = static_cast<cc_t>(c);
    return t_.by_lines() && (ends_line(c) || u == end_of_file_ || u == quote_ || u == erase_);
  }
  void put(char c) {
    if (needs_quote(c)) add(static_cast<char>(quote_));
    add(c);
  }
  void put_line(const char* text, size_t bytes) {
    const bool ended = bytes != 0 && ends_line(text[bytes - 1]);
    const size_t before_end = ended ? bytes - 1 : bytes;
    for (size_t i = 0; i < before_end; ++i) put(text[i]);
    add(ended ? text[bytes - 1] : static_cast<char>(end_of_file_));
  }

  struct termios2 modes() const {
    struct termios2 modes = t_.modes;
    modes.c_iflag = 0;
    modes.c_oflag = 0;
    modes.c_lflag = ECHO | (t_.by_lines() ? ICANON | IEXTEN : 0);
    for (const int none : {VINTR, VQUIT, VKILL, VSUSP, VSTART, VSTOP, VWERASE, VREPRINT, VDISCARD})
      modes.c_cc[none] = 0;
    modes.c_cc[VEOF] = end_of_file_;
    modes.c_cc[VLNEXT] = quote_;
    modes.c_cc[VERASE] = erase_;
    return modes;
  }

  bool write_all() {
    for (size_t done = 0; done < t_.typed_bytes;) {
      const ssize_t n = ::write(t_.master, t_.typed.data() + done, t_.typed_bytes - done);
      if (n <= 0) return t_.fail("put the input back into", n < 0 ? errno : EIO);
      done += static_cast<size_t>(n);
    }
    return true;
  }

  bool read_echo(size_t bytes) {
    std::array<char, 512> echo;
    while (bytes > 0) {
      if ((poll_for(t_.master, POLLIN, kPatience) & POLLIN) == 0) return t_.fail("put the input back into", ETIME);
      const ssize_t n = ::read(t_.master, echo.data(), std::min(echo.size(), bytes));
      if (n <= 0) return t_.fail("read the echo of", n < 0 ? errno : EIO);
      bytes -= static_cast<size_t>(n);
    }
    return true;
  }

  Transfer& t_;
  cc_t end_of_file_ = 0, quote_ = 0, erase_ = 0;
};

bool put_output(Transfer& t) {
  if (t.output_bytes == 0) return true;
  struct termios2 plain = t.modes;
  plain.c_oflag &= ~static_cast<tcflag_t>(OPOST);
  if (!set(t, plain)) return false;
  bool done = true;
  for (size_t at = 0; done && at < t.output_bytes;) {
    const ssize_t n = ::write(t.slave, t.output.data() + at, t.output_bytes - at);
    if (n > 0) {
      at += static_cast<size_t>(n);
    } else if (n == 0 || errno != EAGAIN || (poll_for(t.slave, POLLOUT, kPatience) & POLLOUT) == 0) {
      done = t.fail("put the output back into", n < 0 ? errno : EIO);
    }
  }
  return set(t, t.modes) && done;
}

void switch_packets(const Transfer& t, int on) {
  if (t.packets) ::ioctl(t.master, TIOCPKT, &on);
}

int take_and_put_back(void* argument) {
  Transfer& t = *static_cast<Transfer*>(argument);
  switch_packets(t, 0);
  const bool taken = take_output(t) && take_input(t);
  const bool typed = Typist(t).type();
  if (!typed) set(t, t.modes);
  put_output(t);
  switch_packets(t, 1);
  return taken && typed ? 0 : 1;
}

/// Whether a line that is not whole may be there, or anything.
bool may_hold_something(const Transfer& t) {
  if (t.by_lines()) return true;
  return (poll_for(t.master, POLLIN, 0) & POLLIN) != 0 || (poll_for(t.slave, POLLIN, 0), waiting(t.slave) > 0);
}

std::unique_ptr<Transfer> begin(int master, int slave, const std::string& who) {
  auto t = std::make_unique<Transfer>();
  t->master = master;
  t->slave = slave;
  check(::ioctl(slave, TCGETS2, &t->modes), "read the modes of", who);
  return t;
}

/// In our memory, but no thread of ours: it goes on when we are killed.
void in_process_of_its_own(Transfer& t, const std::string& who) {
  constexpr size_t kStack = 64 << 10;
  const auto stack = std::make_unique<std::array<char, kStack>>();
  sigset_t all, before;
  ::sigfillset(&all);
  ::pthread_sigmask(SIG_SETMASK, &all, &before);
  const int child = ::clone(take_and_put_back, stack->data() + stack->size(), CLONE_VM | CLONE_VFORK | SIGCHLD, &t);
  const int failed = errno;
  int status = 0;
  if (child > 0) ::waitpid(child, &status, 0);
  ::pthread_sigmask(SIG_SETMASK, &before, nullptr);
  if (child < 0) throw Error("look into the queue of", who, failed);
}

}  // namespace

TerminalQueue look_at_queue(int master, int slave, const std::string& who) {
  const auto t = begin(master, slave, who);
  int packets = 0;
  check(::ioctl(master, TIOCGPKT, &packets), "ask the packet mode of", who);
  t->packets = packets != 0;
  if (!may_hold_something(*t)) return {};
  constexpr const char* kRemedy = "try again when the program has read it";
  if ((poll_for(master, POLLPRI, 0) & POLLPRI) != 0)
    throw Refusal(who + ", with a change that its master was not told yet (TIOCPKT)", kRemedy);
  if ((t->modes.c_lflag & EXTPROC) != 0 && waiting(slave) > 0)
    throw Refusal(who + ", with input that is edited outside (EXTPROC)", kRemedy);
  constexpr int kAlmostFull = 4080;
  if (waiting(slave) >= kAlmostFull) throw Refusal(who + ", whose input queue is full", kRemedy);
  in_process_of_its_own(*t, who);
  if (t->failed != nullptr) throw Error(t->failed, who, t->error);
  TerminalQueue queue;
  size_t at = 0;
  for (size_t i = 0; i < t->line_count; at += t->lines[i++])
    queue.lines.emplace_back(t->input.data() + at, t->lines[i]);
  queue.rest.assign(t->input.data() + at, t->input_bytes - at);
  queue.output.assign(t->output.data(), t->output_bytes);
  return queue;
}

void fill_queue(int master, int slave, const TerminalQueue& queue, const std::string& who) {
  const auto t = begin(master, slave, who);
  const auto add = [&](const std::string& text) {
    if (text.size() > t->input.size() - t->input_bytes)
      throw Corrupt("migrate-terminals.img", "a terminal has more input than there is room for");
    std::ranges::copy(text, t->input.data() + t->input_bytes);
    t->input_bytes += text.size();
  };
  if (queue.lines.size() > t->lines.size() || queue.output.size() > t->output.size() ||
      (!queue.lines.empty() && !t->by_lines()))
    throw Corrupt("migrate-terminals.img", "a terminal has an impossible queue");
  for (const std::string& line : queue.lines) {
    add(line);
    t->lines[t->line_count++] = static_cast<uint16_t>(line.size());
  }
  add(queue.rest);
  std::ranges::copy(queue.output, t->output.data());
  t->output_bytes = queue.output.size();
  const bool typed = Typist(*t).type();
  if (!typed || !put_output(*t)) throw Error(t->failed, who, t->error);
}

/// A slave cannot be written to then, nor where its output buffer is full.
bool is_stopped(int master, int slave) {
  constexpr int kFull = 4095;
  return (poll_for(slave, POLLOUT, 0) & POLLOUT) == 0 && waiting(master) < kFull;
}

}  // namespace migrate
