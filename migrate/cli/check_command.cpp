// migrate check [--feature NAME], migrate check HOST:PORT
#include <algorithm>
#include <iomanip>
#include <iostream>

#include "migrate/cli/commands.h"
#include "migrate/cli/host_checks.h"
#include "migrate/report/text.h"
#include "migrate/session/source/peer_check.h"
#include "migrate/session/telling/events.h"

namespace migrate::cli {
namespace {

const char* verdict_of(const Feature& f) { return f.present ? "ok" : f.required ? "MISSING" : "absent"; }

/// What it is for, what is there; and, where it is missing, what follows and what to do.
std::string tell(const Feature& f) {
  std::string text = f.use + (f.found.empty() ? "" : " (" + f.found + ")");
  if (!f.present) text += "; without it " + f.without + "; to do: " + f.remedy;
  return printable_text(text);
}

class Listing {
 public:
  explicit Listing(bool json) {
    if (json) events_.emplace(ReportFormat::json, "check", false);
  }

  void add(const Feature& f) {
    good_ = good_ && (f.present || !f.required);
    if (events_) {
      return events_->event("check", tell(f),
                            {{"name", f.name},
                             {"verdict", std::string(f.present    ? "ok"
                                                     : f.required ? "missing"
                                                                  : "absent")},
                             {"required", f.required},
                             {"use", f.use},
                             {"found", f.found},
                             {"without", f.without},
                             {"remedy", f.remedy}});
    }
    std::cout << std::left << std::setw(8) << verdict_of(f) << std::setw(21) << f.name << tell(f) << "\n";
  }

  void say(const std::string& sentence) {
    if (events_) {
      events_->event("peer", sentence, {});
    } else {
      std::cout << printable_text(sentence) << "\n";
    }
  }

  /// The exit code.
  int end(const std::string& good, const std::string& bad) {
    if (events_) {
      events_->event("checked", good_ ? good : bad, {{"good", good_}});
    } else {
      std::cout << (good_ ? good : bad) << "\n";
    }
    return good_ ? 0 : 1;
  }

 private:
  std::optional<PrintedEvents> events_;
  bool good_ = true;
};

int check_one(const std::string& name, const std::vector<Feature>& features) {
  for (const Feature& f : features) {
    if (f.name != name) continue;
    std::cout << f.name << (f.present ? " is supported" : " is not supported: " + tell(f)) << "\n";
    return f.present ? 0 : 1;
  }
  std::cout << "Unknown feature " << name << "; known are:";
  for (const Feature& f : features) std::cout << " " << f.name;
  std::cout << "\n";
  return 1;
}

int check_other_host(const CheckOptions& o) {
  const PeerCheck there = check_peer(o.link, o.peer, Timeouts{});
  Listing listing(o.json);
  listing.say("connected to " + there.peer + ", host " + there.host + ", " + there.connection + "; " +
              human_bytes(there.memory_available) + " of memory are free there");
  for (const Feature& fact : there.facts) listing.add(fact);
  return listing.end("Programs of this host can run there, as far as the hosts can tell.",
                     "No program of this host can run there.");
}

int check_this_host(const CheckOptions& o) {
  std::vector<Feature> features = kernel_features();
  if (o.feature == "list") {
    for (const Feature& f : features) std::cout << f.name << "\n";
    return 0;
  }
  if (!o.feature.empty()) return check_one(o.feature, features);
  Listing listing(o.json);
  for (const auto& group : {needed_capabilities(), std::move(features), settings(), keys(o.link, o.keys_named)})
    for (const Feature& f : group) listing.add(f);
  return listing.end("Looks good.", "Something that is required is missing.");
}

}  // namespace

int run_check(const CheckOptions& o) { return o.peer.empty() ? check_this_host(o) : check_other_host(o); }

}  // namespace migrate::cli
