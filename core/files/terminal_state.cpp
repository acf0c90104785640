#include "core/files/terminal_state.h"

#include <asm/termbits.h>
#include <fcntl.h>
#include <linux/tty.h>
#include <sys/ioctl.h>
#include <sys/sysmacros.h>

#include <algorithm>

#include "core/base/error.h"

namespace migrate {
namespace {

constexpr int kSpecialCharacters = 19;  // NCCS
static_assert(NCCS == kSpecialCharacters);

template <class Termios>
void put_modes(const Termios& t, img::termios_entry& out) {
  out.set_c_iflag(t.c_iflag);
  out.set_c_oflag(t.c_oflag);
  out.set_c_cflag(t.c_cflag);
  out.set_c_lflag(t.c_lflag);
  out.set_c_line(t.c_line);
  out.set_c_ispeed(0);
  out.set_c_ospeed(0);
  out.clear_c_cc();
  for (const cc_t c : t.c_cc) out.add_c_cc(c);
}

template <class Termios>
Termios get_modes(const img::termios_entry& entry) {
  Termios t{};
  t.c_iflag = entry.c_iflag();
  t.c_oflag = entry.c_oflag();
  t.c_cflag = entry.c_cflag();
  t.c_lflag = entry.c_lflag();
  t.c_line = static_cast<cc_t>(entry.c_line());
  for (int i = 0; i < entry.c_cc_size(); ++i) t.c_cc[i] = static_cast<cc_t>(entry.c_cc(i));
  return t;
}

void check_modes(const img::termios_entry& entry) {
  const auto is_char = [](uint32_t c) { return c <= UINT8_MAX; };
  if (entry.c_cc_size() > kSpecialCharacters || !std::ranges::all_of(entry.c_cc(), is_char) || entry.c_line() != N_TTY)
    throw Corrupt("tty-info.img", "a terminal has impossible modes");
}

int flag_of(int fd, unsigned long request) {
  int value = 0;
  check(::ioctl(fd, request, &value), "ask the state of", "a terminal");
  return value;
}

}  // namespace

uint32_t index_of_master(int fd, const std::string& who) {
  unsigned index = 0;
  check(::ioctl(fd, TIOCGPTN, &index), "ask the number of the terminal:", who);
  return index;
}

std::string slave_path(uint32_t index) { return "/dev/pts/" + std::to_string(index); }

bool is_hung_up(int fd) {
  struct termios2 modes;
  return ::ioctl(fd, TCGETS2, &modes) != 0 && errno == EIO;
}

std::optional<uint32_t> index_behind(int fd) {
  unsigned device = 0;
  if (::ioctl(fd, TIOCGDEV, &device) != 0) return std::nullopt;
  if (major(device) < 136 || major(device) > 143) return std::nullopt;
  return minor(device);
}

std::string what_is_odd(int fd) {
  int discipline = 0;
  if (::ioctl(fd, TIOCGETD, &discipline) == 0 && discipline != N_TTY)
    return " with line discipline " + std::to_string(discipline);
  return {};
}

void describe_terminal(int fd, bool master, img::tty_info_entry& out) {
  struct termios2 modes {};
  check(::ioctl(fd, TCGETS2, &modes), "read the modes of", "a terminal");
  put_modes(modes, *out.mutable_termios());
  out.mutable_termios()->set_c_ispeed(modes.c_ispeed);
  out.mutable_termios()->set_c_ospeed(modes.c_ospeed);
  struct termios locked {};
  check(::ioctl(fd, TIOCGLCKTRMIOS, &locked), "read the locked modes of", "a terminal");
  put_modes(locked, *out.mutable_termios_locked());
  struct winsize size {};
  check(::ioctl(fd, TIOCGWINSZ, &size), "read the size of", "a terminal");
  out.mutable_winsize()->set_ws_row(size.ws_row);
  out.mutable_winsize()->set_ws_col(size.ws_col);
  out.mutable_winsize()->set_ws_xpixel(size.ws_xpixel);
  out.mutable_winsize()->set_ws_ypixel(size.ws_ypixel);
  out.set_exclusive(flag_of(fd, TIOCGEXCL) != 0);
  out.set_locked(master && flag_of(fd, TIOCGPTLCK) != 0);
  out.set_packet_mode(master && flag_of(fd, TIOCGPKT) != 0);
}

void check_terminal(const img::tty_info_entry& entry) {
  if (entry.type() != img::TtyType::PTY && entry.type() != img::TtyType::CTTY)
    throw Refusal("the images hold a terminal that is no pseudo-terminal", "redirect the program before it is dumped");
  if (!entry.has_pty() || entry.pty().index() >= kMaxTerminals)
    throw Corrupt("tty-info.img", "a pseudo-terminal has no number or an impossible one");
  if (entry.has_termios()) check_modes(entry.termios());
  if (entry.has_termios_locked()) check_modes(entry.termios_locked());
  const img::winsize_entry& size = entry.winsize();
  if (std::max({size.ws_row(), size.ws_col(), size.ws_xpixel(), size.ws_ypixel()}) > UINT16_MAX)
    throw Corrupt("tty-info.img", "a terminal has an impossible size");
}

void set_modes(int master, const img::tty_info_entry& entry, const std::string& who) {
  struct termios2 modes = get_modes<struct termios2>(entry.termios());
  modes.c_ispeed = entry.termios().c_ispeed();
  modes.c_ospeed = entry.termios().c_ospeed();
  check(::ioctl(master, TCSETS2, &modes), "set the modes of", who);
  if (entry.has_termios_locked()) {
    const struct termios locked = get_modes<struct termios>(entry.termios_locked());
    check(::ioctl(master, TIOCSLCKTRMIOS, &locked), "lock the modes of", who);
  }
  if (!entry.has_winsize()) return;
  const img::winsize_entry& s = entry.winsize();
  const struct winsize size {
    static_cast<uint16_t>(s.ws_row()), static_cast<uint16_t>(s.ws_col()), static_cast<uint16_t>(s.ws_xpixel()),
        static_cast<uint16_t>(s.ws_ypixel())
  };
  check(::ioctl(master, TIOCSWINSZ, &size), "set the size of", who);
}

void set_switches(int master, const img::tty_info_entry& entry, const std::string& who) {
  const int on = 1;
  if (entry.packet_mode()) check(::ioctl(master, TIOCPKT, &on), "set the packet mode of", who);
  if (entry.exclusive()) set_exclusive(master, who);
  if (entry.locked()) lock_slave(master, true, who);
}

void set_exclusive(int fd, const std::string& who) { check(::ioctl(fd, TIOCEXCL), "make exclusive", who); }

Fd open_slave(int master, int flags, const std::string& who) {
  // With O_CLOEXEC that would stay in the flags of the description, as open(2) leaves it out.
  Fd slave(check(::ioctl(master, TIOCGPTPEER, (flags & ~O_CLOEXEC) | O_NOCTTY), "open", who));
  check(::fcntl(slave.get(), F_SETFD, FD_CLOEXEC), "set the flags of", who);
  return slave;
}

void lock_slave(int master, bool locked, const std::string& who) {
  const int value = locked ? 1 : 0;
  check(::ioctl(master, TIOCSPTLCK, &value), "lock or unlock", who);
}

}  // namespace migrate
