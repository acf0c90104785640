// Blocking work beside somebody who watches what else happens.
#pragma once

#include <exception>
#include <functional>

namespace migrate {

/// Runs `work` in a thread of its own. Until that ends `watch` is called here again and again, with a descriptor that
/// gets readable at the end of the work. What `watch` throws is thrown, once `cancel` has made the work end. Returns
/// what the work threw, or nothing.
std::exception_ptr run_beside(const std::function<void()>& work, const std::function<void(int wake)>& watch,
                              const std::function<void()>& cancel);

}  // namespace migrate
