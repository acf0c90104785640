#include "core/files/net_table.h"

#include <sys/socket.h>

#include <sstream>

#include "core/base/error.h"
#include "core/base/proc_values.h"

namespace migrate {
namespace {

constexpr const char* kWhere = "/proc/net";
constexpr size_t kWord = 8;  // an address is printed as words of 32 bits in the host's order

void read_address(const std::string& text, size_t digits, std::string& address, uint16_t& port) {
  if (text.size() < digits + 2 || text[digits] != ':') throw Corrupt(kWhere, "a line of another kind");
  for (size_t i = 0; i < digits; i += kWord) {
    const auto word = parse_number<uint32_t>(std::string_view(text).substr(i, kWord), kWhere, 16);
    address.append(reinterpret_cast<const char*>(&word), sizeof word);
  }
  const auto number = parse_number<uint32_t>(std::string_view(text).substr(digits + 1), kWhere, 16);
  if (number > UINT16_MAX) throw Corrupt(kWhere, "a number is out of range");
  port = static_cast<uint16_t>(number);
}

}  // namespace

NetTableLine parse_net_table_line(std::string_view line, int family) {
  const size_t digits = family == AF_INET ? kWord : 4 * kWord;
  std::istringstream words{std::string(line)};
  std::string slot, local, remote, state, queue, timer, retries, uid, timeout, inode;
  words >> slot >> local >> remote >> state >> queue >> timer >> retries >> uid >> timeout >> inode;
  if (!words) throw Corrupt(kWhere, "a line of another kind");
  NetTableLine out;
  read_address(local, digits, out.address, out.port);
  read_address(remote, digits, out.peer_address, out.peer_port);
  const auto number = parse_number<uint32_t>(state, kWhere, 16);
  const size_t colon = queue.find(':');
  if (colon == std::string::npos) throw Corrupt(kWhere, "a line of another kind");
  out.received = parse_number<uint32_t>(std::string_view(queue).substr(colon + 1), kWhere, 16);
  if (number > UINT8_MAX) throw Corrupt(kWhere, "a number is out of range");
  out.state = static_cast<uint8_t>(number);
  out.inode = parse_number(inode, kWhere);
  return out;
}

}  // namespace migrate
