"""What stands around planted items: sentences, records, tables, signatures, logs."""

from __future__ import annotations

SENTENCES: dict[str, dict[str, tuple[str, ...]]] = {
    "en": {
        "email": (
            "You can write to {} any time.", "Her address is {}.", "Mail me ({}) tomorrow?",
            "From: Anna Smith <{}>\nSubject: lunch", "Contact: mailto:{}", "{} wrote:\n> fine",
            "Send it to {}, please; thanks!", "cc:{}; bcc: nobody", "My mail's \"{}\".",
        ),
        "phone": (
            "Call me at {} tonight.", "My number is {}, ask for Tom.", "Tel: {}", "Phone {}.",
            "She can be reached on {} after six.", "Text {} to book.", "mobile:{} (Peter)",
            "Please ring {} or come by.", "WhatsApp {}", "Fax {}, attention Ms Lee", "cell={}",
        ),
        "resident id": (
            "His Chinese resident ID is {}.", "ID number: {}", "Passenger Li Wei, {}, seat 12A.",
            "The form asks for the ID ({}) twice.", "resident_id={}", "Holder {} signed it.",
        ),
        "card": (
            "My card is {}, valid 09/27.", "Charge it to {} please.", "Card number: {} CVV 123",
            "Visa {}, expires next year.", "I paid with {} and it failed.", "card={};", "({})",
        ),
        "iban": (
            "Please transfer the rent to {}.", "IBAN: {}", "My account is {} at the local bank.",
            "Send it to {}, reference Smith.", "(IBAN {})", "iban={}", "{} is the new account.",
        ),
        "ip": (
            "The server at {} is down.", "Login from {} failed.", "I can ping {}.", "Host: {}",
            "My address is {}, port 22.", "Accepted password for root from {} port 5022 ssh2",
            "ssh root@{}", "Client [{}] connected", "deny from {};", "IP={}", "It's {}?",
        ),
    },
    "zh": {
        "email": (
            "我的邮箱是{}，有事写信。", "请发到{}谢谢", "邮箱：{}", "联系邮箱：{}；张三收",
            "把简历投到{}即可。", "（{}）", "抄送{}、李四", "可以写信给{}询问", "E-mail:{}",
        ),
        "phone": (
            "我的电话是{}，随时打。", "手机：{}", "联系电话：{}（王先生）", "请拨打{}预约。",
            "微信同号{}", "有事打{}找我", "客服热线{}，全年无休", "电话{}，传真同号。",
            "拨打{}即可", "他的手机号是{}吧？", "Tel:{}", "号码{}已登记",
        ),
        "resident id": (
            "我的身份证号是{}。", "身份证：{}", "证件号码{}，请核对。", "乘客李伟，{}，靠窗。",
            "（身份证号{}）", "持证人{}已登记", "填上{}就行", "公民身份号码{}",
        ),
        "card": (
            "卡号是{}，工商银行。", "银行卡：{}", "请打到{}这张卡。", "信用卡{}已挂失",
            "（卡号{}）", "户名李伟，账号{}", "我的建行卡{}丢了", "尾号之外全号{}",
        ),
        "iban": (
            "请汇到{}，谢谢。", "国际账号：{}", "收款账户{}，德国。", "他的IBAN是{}。",
            "账号{}已确认", "（{}）", "IBAN：{}",
        ),
        "ip": (
            "服务器{}挂了。", "我的地址是{}，帮我看看", "从{}登录失败", "IP：{}", "请ping一下{}",
            "（{}）", "来自{}的请求太多。", "内网地址{}，端口八十", "主机{}已重启",
        ),
    },
}  # fmt: skip

CONTEXTS: dict[str, tuple[str, ...]] = {
    "en": (
        "- {}\n- nothing else", "| Smith | {} | yes |", '{"name": "Smith", "value": "{}"}',
        "7,Smith,{},London", "Best regards,\nJohn Smith\n{}\nAcme Ltd.", "<td>{}</td>",
        "value\t{}\tok", "1) {}\n2) none", "*{}*", "'{}'", "{}\n", "Smith: {}!", "[{}]",
    ),
    "zh": (
        "1、{}\n2、无", "| 张三 | {} | 是 |", '{"姓名": "张三", "内容": "{}"}', "7,张三,{},北京",
        "此致\n敬礼\n张三\n{}", "<td>{}</td>", "张三\t{}\t已核", "“{}”", "【{}】", "张三：{}！",
        "张三{}北京", "{}。", "内容：{}、其他",
    ),
}  # fmt: skip

PHONE_SENTENCES: dict[str, tuple[str, ...]] = {
    "en": (
        "Call me at {} tonight.", "Tel: {}", "phone={}", "My phone number is {}.", "mobile {}",
        "WhatsApp {}", '{"phone": "{}"}', "Text me on {}, please.", "Fax: {}", "cell: {}",
        "Reach her at {}, she is in.", "Smith, {}, London",
    ),
    "zh": (
        "我的电话是{}。", "手机：{}", "联系电话：{}", "请拨打{}预约", "客服热线{}", "电话{}",
        '{"电话": "{}"}', "固定电话：{}，白天有人", "打他电话{}", "座机{}", "张三，{}，北京",
    ),
}  # fmt: skip

KEY_SENTENCES: dict[str, tuple[str, ...]] = {
    "en": (
        "I pushed {} by mistake.", "export KEY={}", '{"value": "{}"}', "Use {} for now.",
        "# old: {}", "The log shows {} twice.", "Authorization: Bearer {}", "- `{}`",
        "see:\n{}\nand rotate it",
    ),
    "zh": (
        "我不小心提交了{}。", "密钥在这里：{}", "把{}填进去", '{"值": "{}"}', "日志里有{}，要换掉",
        "“{}”", "先用{}吧", "配置如下\n{}\n请更换",
    ),
}  # fmt: skip

SECRET_SENTENCES: dict[str, tuple[str, ...]] = {
    "en": (
        "api_key = '{}'", "API_KEY={}", "secret: {}", '"client_secret": "{}"', "token={}&x=1",
        "AWS_SECRET_ACCESS_KEY={}", 'access_token: "{}"', "The API key is {}.", "apiKey: '{}',",
        "SECRET_KEY = \"{}\"", "auth_token => '{}'", "my token is {}, keep it",
    ),
    "zh": (
        "密钥：{}", "密钥是{}，别外传", "api_key={}", "令牌：{}", "访问密钥为{}。", "token：{}",
        "应用密钥: {}", '"secret": "{}"', "接口密钥是“{}”",
    ),
}  # fmt: skip

PASSWORD_SENTENCES: dict[str, tuple[str, ...]] = {
    "en": (
        "password: {}", "The password is {}", "user bob, password={}", "passwd = '{}'",
        "Wifi password: {}\nWelcome", '{"password": "{}", "x": 1}', "DB_PASSWORD={}",
        "My password is {} and it works", "pwd: {}", "Password - {}", "login: bob / password: {}",
    ),
    "zh": (
        "密码：{}", "密码是{}", "密码为{}，请修改", "无线密码: {}", "口令：{}", "登录密码是{}。",
        "账号bob密码{}", "初始密码：{}（请尽快改）", "他的密码：“{}”", "pwd={}",
    ),
}  # fmt: skip
